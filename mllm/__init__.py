"""The multimodal LLM: image tokens and text in, text out."""

from mllm.chat_model import ChatModel

__all__ = ["ChatModel"]
