"""What every part of Skyloom shares: words, contracts and machinery. Knows no cloud."""
