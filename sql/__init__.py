"""The SQL of Taskyard, shipped in the wheel as taskyard.sql so that the installer finds it."""
