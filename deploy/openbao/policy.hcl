# All that the key service may do: use one Transit key, and end old versions of it. It cannot export or delete it, nor
# make it anew under the same name after it was lost. The same text stands in docs/operate/key-backups.md.
path "transit/keys/twinlock" { capabilities = ["read"] }
path "transit/keys/twinlock/rotate" { capabilities = ["update"] }
path "transit/keys/twinlock/config" { capabilities = ["update"] }
path "transit/keys/twinlock/trim" { capabilities = ["update"] }
path "transit/encrypt/twinlock" { capabilities = ["update"] }
path "transit/decrypt/twinlock" { capabilities = ["update"] }
path "transit/rewrap/twinlock" { capabilities = ["update"] }
