// Package loopback provides the TLS certificate for services on 127.0.0.1, and makes it
// the only root certificate that this process trusts.
package loopback

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Certificate returns the certificate of the services, which is the same for every call.
// That of httptest has an RSA key, which takes a millisecond of a core for every
// handshake. With a real service, another machine spends that time.
var Certificate = sync.OnceValues(func() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
})

// Only makes [Certificate] the only root certificate of the system for this process. It
// works on Linux. It is needed because the default transports of alicaptcha and of the
// SDK cannot be given a root. Only also removes proxies and DEBUG from the environment.
// It must be called before any certificate is verified. The function forget removes the
// file that Only has created.
func Only() (forget func(), err error) {
	own, err := Certificate()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	roots := filepath.Join(dir, "roots.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate[0]}
	errs := []error{
		os.WriteFile(roots, pem.EncodeToMemory(block), 0o600), os.Setenv("SSL_CERT_FILE", roots), os.Setenv("SSL_CERT_DIR", dir),
	}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "DEBUG"} {
		errs = append(errs, os.Unsetenv(name), os.Unsetenv(strings.ToLower(name)))
	}
	return func() { os.RemoveAll(dir) }, errors.Join(errs...)
}
