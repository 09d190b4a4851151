# For Packer 1.10 and later with the proxmox plugin. The machine stays a machine: it is verified before it becomes a template.

packer {
  required_plugins {
    proxmox = {
      source  = "github.com/hashicorp/proxmox"
      version = ">= 1.2.4"
    }
  }
}

build {
  source "source.proxmox-iso.golden" {
    # An empty drive stays: without it the boot order would be empty, and a machine without an order boots its disk.
    boot_iso {
      type              = "ide"
      index             = "2"
      iso_file          = var.iso_file
      unmount           = true
      keep_cdrom_device = true
    }

    # Version 1.2.4 starts the machine again then (packer-plugin-proxmox issue 360): see boot in source.pkr.hcl.
    skip_convert_to_template = true

    # The plugin's own limit for one task, a minute, is less than a slow storage takes for a disk.
    task_timeout = "30m"

    # The installer writes its console to the first port and its log to the second: qm terminal shows them.
    serials = ["socket", "socket"]
  }
}
