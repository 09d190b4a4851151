# Everything an installation on a node may differ in. The Python side decides and hands over one flat JSON file.

variable "node" {
  type        = string
  description = "The node that runs the installer."
}

variable "pool" {
  type        = string
  description = "The pool that the machine belongs to; the token has its rights there."
}

variable "vm_id" {
  type        = number
  description = "Free, and from the range of golden.yaml."
}

variable "vm_name" {
  type        = string
  description = "Names the run as well: what a killed run leaves is known by it."
}

variable "iso_file" {
  type        = string
  description = "Volume id of the installation medium on the node, for example local:iso/golden.iso."
}

variable "cpu_type" {
  type = string
}

variable "cores" {
  type = number
}

variable "memory" {
  type        = number
  description = "MiB"
}

variable "storage" {
  type        = string
  description = "The storage that takes the disk."
}

variable "storage_type" {
  type        = string
  description = "Its type, for example lvmthin or dir: required by Packer 1.6.6."
}

variable "disk_size" {
  type        = string
  description = "With unit, for example 16G."
}

variable "install_time" {
  type        = string
  description = "How long the installation may take, for example 15m: Packer waits that long whatever happens."
}
