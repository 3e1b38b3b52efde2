"""A plug-in in the tests: a method, a metric, a suite, and a method that cannot be imported."""
