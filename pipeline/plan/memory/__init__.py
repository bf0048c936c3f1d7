"""Memory of the teacher pass and of training, computed from shapes alone; docs/plan.md explains every formula."""
