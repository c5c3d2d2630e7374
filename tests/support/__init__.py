"""Parts that several test files share: networks, tasks, files, and what is asked of them."""
