"""The engine for one device in plain torch: no gradient, weight or moment is copied or kept twice."""
