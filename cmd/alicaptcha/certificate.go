package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// newCertificate returns a certificate for hosts, which are names and IP
// addresses, and in PEM the certificate of the CA that signed it. The CA's key
// is discarded, so that whoever trusts the CA trusts this certificate alone.
func newCertificate(hosts []string) (certificate tls.Certificate, ca []byte, err error) {
	now := time.Now()
	authority := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "alicaptcha simulate"},
		NotBefore:             now.Add(-time.Hour), // a client's clock may be behind
		NotAfter:              now.AddDate(1, 0, 0),
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "alicaptcha simulate " + hosts[0]},
		NotBefore:   authority.NotBefore,
		NotAfter:    authority.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if addr, err := netip.ParseAddr(host); err == nil {
			leaf.IPAddresses = append(leaf.IPAddresses, addr.AsSlice())
		} else {
			leaf.DNSNames = append(leaf.DNSNames, host)
		}
	}

	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	authorityDER, err := x509.CreateCertificate(rand.Reader, authority, authority, authorityKey.Public(), authorityKey)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	if authority, err = x509.ParseCertificate(authorityDER); err != nil { // it has a subject key ID now
		return tls.Certificate{}, nil, err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, authority, leafKey.Public(), authorityKey)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authorityDER})
	return tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: leafKey}, ca, nil
}

// parseHosts returns the names and IP addresses in list, which are separated by
// commas, or an error if one of them cannot be the host of a URL.
func parseHosts(list string) ([]string, error) {
	if list == "" {
		return nil, nil
	}
	hosts := strings.Split(list, ",")
	for _, host := range hosts {
		if _, err := netip.ParseAddr(host); err == nil {
			continue
		}
		u, err := url.Parse("https://" + host)
		if err != nil || host == "" || u.Host != host || u.Port() != "" || u.Hostname() != host {
			return nil, fmt.Errorf("%q is neither a host name nor an IP address", host)
		}
	}
	return hosts, nil
}
