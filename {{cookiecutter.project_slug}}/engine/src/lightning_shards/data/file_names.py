"""What a file is by its name alone, in folders, zips and tars: an image, or one that a system leaves behind."""

from __future__ import annotations

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "jpe", "jfif")  # that are decoded
# that are not: they are named as damage, and not passed over
_OTHERS = {
    "jp2", "j2k", "jxl", "jpx", "apng", "avif", "bmp", "dib", "gif", "heic", "heics", "heif", "ico",
    "tif", "tiff", "tga", "psd", "svg", "exr", "hdr", "pbm", "pgm", "ppm", "pnm", "pcx", "dng", "cr2", "cr3", "nef",
    "arw", "raw",
}  # fmt: skip
# of Windows, macOS, network disks; what begins with a dot is hidden anyway, with `~$` the lock of an open document
_SYSTEM = {
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "#recycle",
    "$recycle.bin", "system volume information", "lost+found",
}  # fmt: skip


def is_system_file(name: str) -> bool:
    """Whether a file, or a folder above it, is hidden or a system's own; `name` is a path with slashes."""
    parts = name.split("/")
    hidden = any((part[:1] == "." and part not in (".", "..")) or part.lower() in _SYSTEM for part in parts)
    return hidden or parts[-1].startswith("~$")


def is_image_file(name: str) -> bool:
    """Whether it may be an image: by its extension, or for want of one; its first bytes say what it is."""
    stem, _, extension = name.rpartition("/")[2].rpartition(".")
    plain = not stem or not any(letter.isalpha() for letter in extension)  # such as `photo`, `photo.0001`
    return (plain or extension.lower() in (*IMAGE_FIELDS, *_OTHERS)) and not is_system_file(name)
