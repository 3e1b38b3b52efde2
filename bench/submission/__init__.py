"""Records of strangers: checked and put beside ours, and made again in part."""
