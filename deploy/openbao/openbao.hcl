# OpenBao for the key service's root key: see docs/operate/key-backups.md. One server; in production run three with Raft.
ui = false
disable_mlock = true
api_addr = "https://openbao:8200"
cluster_addr = "https://openbao:8201"

listener "tcp" {
  address = "0.0.0.0:8200"
  cluster_address = "0.0.0.0:8201"
  tls_cert_file = "/openbao/keys/tls.pem"
  tls_key_file = "/openbao/keys/tls.key"
  tls_min_version = "tls13"
}

storage "raft" {
  path = "/openbao/data"
  node_id = "openbao-1"
}
