"""Files over a bad link: partial files on disk, and HTTP that continues after a cut."""
