# Everything a build may differ in. The Python side decides and hands over one flat JSON file; nothing is decided here.
# Paths are relative to the working directory of the build, which Packer is started in.

variable "iso" {
  type        = string
  description = "Installation medium: it boots and installs by itself and powers the machine off."
}

variable "iso_checksum" {
  type        = string
  description = "sha256:HEX of the medium; Packer refuses a medium that differs."
}

variable "qemu_binary" {
  type    = string
  default = "qemu-system-x86_64"
}

variable "accelerator" {
  type        = string
  description = "kvm or tcg, found out by booting a guest; never left to Packer, which only opens the device."
}

variable "machine_type" {
  type = string
}

variable "cpu" {
  type        = string
  description = "QEMU's -cpu value, model and flags."
}

variable "cpus" {
  type = number
}

variable "memory" {
  type        = number
  description = "MiB"
}

variable "disk_size" {
  type        = string
  description = "With unit, for example 16384M."
}

variable "output_directory" {
  type        = string
  description = "Must not exist: Packer makes it, and removes it when the build fails."
}

variable "vm_name" {
  type        = string
  description = "File name of the disk in the output directory."
}

variable "headless" {
  type    = bool
  default = true
}

variable "console_log" {
  type        = string
  description = "First serial port: the installer's console."
}

variable "syslog_log" {
  type        = string
  description = "Second serial port: the installer's system log."
}

variable "shutdown_timeout" {
  type        = string
  description = "From power-on to power-off, for example 3600s."
}

variable "skip_compaction" {
  type        = bool
  description = "Leave the disk as the guest wrote it, without a qemu-img convert."
}

variable "disk_compression" {
  type        = bool
  description = "Compress the clusters when compacting."
}

variable "restrict" {
  type        = string
  description = "on: the guest reaches no network; off: it reaches what the host reaches."
}
