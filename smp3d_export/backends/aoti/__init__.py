"""AOTInductor: a package of machine code for one kind of CPU or GPU."""
