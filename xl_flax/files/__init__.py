"""All operations on files: reading with clear errors, atomic writes, folders, locks, checksums.

The other rooms open, list, replace and lock files through this one. They see local paths only: a
remote folder has a stage (`remote.py`).
"""
