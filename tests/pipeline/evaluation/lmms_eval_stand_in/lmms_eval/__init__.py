"""Stand-in for lmms-eval 0.7.3: the modules, names and signatures that its plug-ins meet, and no others."""
