# Joins the other files only under Packer 1.10 and later, which bundle no builder. Packer 1.6 rejects the block.

packer {
  required_plugins {
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = ">= 1.0.9"
    }
  }
}
