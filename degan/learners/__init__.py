"""The learners, and the pieces between a learner and the wire."""
