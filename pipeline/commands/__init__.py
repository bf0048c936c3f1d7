"""The commands of `alignkd`: each file parses options, calls one public function and prints the result."""
