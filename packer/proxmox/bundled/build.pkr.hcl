# For Packer 1.6.6 with its builder inside. It makes a template at once, and knows no API tokens.

build {
  source "source.proxmox-iso.golden" {
    iso_file    = var.iso_file
    unmount_iso = true
  }
}
