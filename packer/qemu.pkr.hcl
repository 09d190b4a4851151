# The installer's machine: an empty disk, the medium, two serial ports into files, no keystroke, no way to the network.
#
# Only attributes that Packer 1.6.6 and today's qemu plugin both know: an unknown one is an error even when it is null.
# qemuargs replaces every default of a switch it names, so -drive and -device stay unnamed.

source "qemu" "golden" {
  qemu_binary  = var.qemu_binary
  accelerator  = var.accelerator
  machine_type = var.machine_type
  cpus         = var.cpus
  memory       = var.memory

  iso_url      = var.iso
  iso_checksum = var.iso_checksum

  vm_name            = var.vm_name
  output_directory   = var.output_directory
  format             = "qcow2"
  disk_size          = var.disk_size
  disk_interface     = "virtio"
  disk_discard       = "unmap"
  disk_detect_zeroes = "unmap"
  disk_cache         = "unsafe"
  skip_compaction    = var.skip_compaction
  disk_compression   = var.disk_compression
  net_device         = "virtio-net"
  headless           = var.headless
  disable_vnc        = true
  communicator       = "none"
  shutdown_timeout   = var.shutdown_timeout

  qemuargs = [
    ["-cpu", var.cpu],
    # The two versions of Packer spell the topology differently; this is the same machine for both.
    ["-smp", "${var.cpus}"],
    ["-display", var.headless ? "none" : "gtk"],
    # disable_vnc only stops Packer from typing. The server would take a port, and two builds the same one.
    ["-vnc", "none"],
    # Packer always adds a network card. It leads nowhere: an installation has to work from the medium alone. Only the
    # bench, which compares with an installation over the network, opens it.
    ["-netdev", "user,id=user.0,restrict=${var.restrict}"],
    # When the host's disk is full QEMU would pause the guest without a message; with this the installation fails with an error.
    ["-global", "virtio-blk-device.werror=report"],
    ["-serial", "file:${var.console_log}"],
    ["-serial", "file:${var.syslog_log}"],
  ]
}

build {
  sources = ["source.qemu.golden"]
}
