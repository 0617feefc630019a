"""A trained model at work: what it says of images, and files in which it runs without this project."""
