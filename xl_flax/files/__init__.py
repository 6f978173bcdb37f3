"""All operations on files: reading with clear errors, atomic writes, folders, locks, checksums.

The other rooms open, list, replace and lock files through this one, so that remote folders need
to be added here only.
"""
