"""The public test kit: contract suites, simulator, fixtures."""
