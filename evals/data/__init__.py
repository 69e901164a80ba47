"""What is asked: samples, suites drawn on the fly, files of the user, public benchmarks."""
