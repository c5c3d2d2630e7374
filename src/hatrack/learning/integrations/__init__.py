"""Learners in the shape of other libraries; a module for each, which needs that library, and which nothing imports."""
