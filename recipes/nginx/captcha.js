// captcha.ask passes a request on to the location @captcha_passed if `alicaptcha gate`
// lets it through, and otherwise answers with the gate's rejection.

async function ask(r) {
    // The subrequest has the method, the headers and the whole body of the request.
    const reply = await r.subrequest('/captcha-gate', { method: r.method });

    const verified = reply.headersOut['Captcha-Verified'];
    if (reply.status === 204 && (verified === 'true' || verified === 'false')) {
        r.variables.captcha_verified = verified;
        r.internalRedirect('@captcha_passed');
        return;
    }
    if (reply.status < 400 || !reply.headersOut['Captcha-Reference']) {
        // It is not the gate that answered: it is down, or has no such scene.
        r.error('captcha: the gate does not answer, status ' + reply.status);
        r.return(503);
        return;
    }
    const headers = {};
    reply.rawHeadersOut.forEach(h => { headers[h[0]] = (headers[h[0]] || []).concat(h[1]); });
    Object.keys(headers).forEach(name => {
        // nginx writes these itself, and Content-Type is not among them.
        if (!/^(connection|content-length|date|keep-alive|server|transfer-encoding)$/i.test(name)) {
            r.headersOut[name] = headers[name].length > 1 ? headers[name] : headers[name][0];
        }
    });
    r.headersOut['Content-Type'] = reply.headersOut['Content-Type'];
    const body = reply.responseBuffer;
    if (body && body.length > 0) {
        r.return(reply.status, body);
        return;
    }
    r.status = reply.status; // of HEAD; r.return would add a page of nginx
    r.sendHeader();
    r.finish();
}

// askUnlessRead passes GET and HEAD on without asking, and without Captcha-Verified. It
// is for a login whose page has the same path.
async function askUnlessRead(r) {
    if (r.method === 'GET' || r.method === 'HEAD') {
        r.internalRedirect('@captcha_passed');
        return;
    }
    await ask(r);
}

export default { ask, askUnlessRead };
