"""ptalign: safety tuning of open-weights chat models with positive and toxic answers.

The four stages are functions that run in a notebook as well as behind the service:

    generate_instructions -> synthesize_pairs -> align -> evaluate

Importing this package loads neither torch nor vllm; the stages that need torch import it when
they are called.
"""
