"""Where weights are going: fine-tunes watched while they run and afterwards, vectors compared with one another."""
