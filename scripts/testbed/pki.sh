# shellcheck shell=bash
# Certificates of a small cluster, in $TESTBED_DIR/pki: cacert.pem, NAME-cert.pem and
# NAME-privkey.pem, with NAME as the common name. Valid for two days; EC keys, for speed.

pki_dir() { printf '%s/pki\n' "$TESTBED_DIR"; }

# pki_init [NAME...]: the authority and certificates for central, moatctl and each NAME.
pki_init() {
    local name
    pki_authority cacert "Moat test-bed"
    for name in central moatctl "$@"; do pki_cert "$name"; done
}

# pki_authority FILE COMMON_NAME: a self-signed authority FILE.pem with the key FILE.key.
pki_authority() {
    local dir
    dir=$(pki_dir)
    mkdir -p "$dir"
    pki_openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "/O=Moat/CN=$2" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign \
        -keyout "$dir/$1.key" -out "$dir/$1.pem"
}

# pki_cert NAME [AUTHORITY]: a certificate for NAME by an authority (cacert).
pki_cert() {
    local dir name=$1 ca=${2:-cacert}
    dir=$(pki_dir)
    pki_openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/O=Moat/CN=$name" \
        -keyout "$dir/$name-privkey.pem" -out "$dir/$name.csr"
    pki_openssl x509 -req -in "$dir/$name.csr" -CA "$dir/$ca.pem" -CAkey "$dir/$ca.key" -CAcreateserial -days 2 \
        -extfile <(printf 'subjectAltName=DNS:%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$name") -out "$dir/$name-cert.pem"
    rm -f "$dir/$name.csr"
}

# pki_stranger [NAME]: a certificate for NAME (stranger) by an authority that nobody trusts;
# for tests that must be refused.
pki_stranger() {
    pki_authority strange-cacert "Somebody else"
    pki_cert "${1:-stranger}" strange-cacert
}

# pki_options NAME: the options that OVS programs take, one a line.
pki_options() {
    local dir
    dir=$(pki_dir)
    printf '%s\n' "--private-key=$dir/$1-privkey.pem" "--certificate=$dir/$1-cert.pem" "--ca-cert=$dir/cacert.pem"
}

# openssl, silent unless it fails.
pki_openssl() {
    local out
    out=$(openssl "$@" 2>&1) || { tb_fail "openssl $1: $out"; return 1; }
}
