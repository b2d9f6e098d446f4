"""Environment variables by which a cluster's job tells the runtime about itself."""

JOB = "POLYSCENE_JOB"  # its number and submission, the same in all its attempts
RENDEZVOUS = "POLYSCENE_RENDEZVOUS"  # the file in which rank 0 writes how it is reached
ATTEMPT = "POLYSCENE_ATTEMPT"  # how often it was started before, where SLURM does not say
