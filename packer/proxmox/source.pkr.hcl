# The installer's machine on a node of Proxmox VE: the same medium, no keystroke, no network card.
#
# Only attributes that Packer 1.6.6 and today's proxmox plugin both know; what only one of them knows is in build.pkr.hcl
# of bundled/ or plugin/. Address and credentials are read from the environment and stand in no file: PROXMOX_URL and
# PROXMOX_USERNAME, with PROXMOX_TOKEN (the plugin) or PROXMOX_PASSWORD (1.6.6, which knows no tokens).

source "proxmox-iso" "golden" {
  node    = var.node
  pool    = var.pool
  vm_id   = var.vm_id
  vm_name = var.vm_name

  os = "l26"

  # The disk is not in the order, so that nothing ever boots what was installed, not even a builder that starts the
  # machine when it is done. Proxmox asks the firmware to keep to the order (-boot strict=on).
  boot = "order=ide2"

  cpu_type        = var.cpu_type
  cores           = var.cores
  memory          = var.memory
  scsi_controller = "virtio-scsi-single"

  disks {
    type              = "scsi"
    storage_pool      = var.storage
    storage_pool_type = var.storage_type
    disk_size         = var.disk_size
    format            = "raw"
    io_thread         = true
  }

  # The installer has no guest agent: Proxmox would wait for it.
  qemu_agent = false

  # With no communicator the builder shuts the machine down as soon as the boot command is typed. This one types nothing
  # and waits: the installer powers the machine off by itself meanwhile, and to shut it down again does nothing.
  communicator      = "none"
  boot_wait         = var.install_time
  boot_command      = ["<wait>"]
  http_bind_address = "127.0.0.1"
}
