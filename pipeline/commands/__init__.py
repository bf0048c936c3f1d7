"""One file per command, all of one form: options, one public function of another room, its result printed."""
