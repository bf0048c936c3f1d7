"""Phase 1: run the teacher once over the data set and write a student's targets to a store."""
