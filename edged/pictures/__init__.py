"""Pictures of cameras and files: decoding, scaling to what models take, and JPEGs for people."""
