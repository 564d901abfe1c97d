"""What the documentation shows is what there is: its blocks, links, generated pages and pictures."""
