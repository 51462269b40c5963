"""Files over a bad link: partial files on disk, and HTTP that goes on where it was cut."""
