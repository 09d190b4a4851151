"""Foreign projects on the image: made by their own tools, bundled, deployed, used, backed up and restored."""
