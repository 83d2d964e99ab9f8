"""How good the student is and how far it is from the teacher: scores, held-out KL, sampler gap, diagnosis."""
