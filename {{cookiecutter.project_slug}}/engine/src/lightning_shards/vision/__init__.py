"""What image models share: what is shown of a task, augmentation on the device, stems for tiny images, weights."""
