"""The SDK's functions: `sdk` gives request ids, `sdk_async` gives results."""
