"""Phase 1: run the teacher once over the data set and write what a student must learn from it to a store."""
