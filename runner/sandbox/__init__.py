"""What confines a child: the kernel enforces what the database decided."""
