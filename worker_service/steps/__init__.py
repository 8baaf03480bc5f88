"""The steps of a VM's life, one function each, from fetching its images to saving its disks."""
