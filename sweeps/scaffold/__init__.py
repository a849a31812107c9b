"""A first family file and a first sweep file for a folder of images."""
