"""Phase 2: stream the cached targets of a teacher into a student."""
