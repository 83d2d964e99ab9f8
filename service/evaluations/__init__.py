"""The student's scores, before training and after."""
