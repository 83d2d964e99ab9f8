"""What rows of data mean and how prompts are written, for the service and the engine alike.

Owns reading rows from files (`readers`), what a row means (`rows`, `shapes`), problems and their fingerprint
(`problems`), prompt templates (`templates`) and prompts as token ids (`prompts`, `chat_template`). Because both sides
call the same functions, a row that an upload accepts trains, and a previewed prompt is the prompt of the job. Small
modules for all sides are here too: `notices`, `plain_json`, `unique_json`, `network_address`, `plots`.

Never imports torch, transformers, `datasets` or another of our packages.
"""
