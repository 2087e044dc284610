"""What the tabs of the application show: one pane per file."""
