const YEAR_S = 365 * 24 * 3600;

// Values are words and names such as Europe/Berlin: nothing that a cookie would need to encode.
export function cookieWrite(name, value) {
  const secure = location.protocol === "https:" ? "; Secure" : "";
  const age = value === "" ? 0 : YEAR_S;
  document.cookie = `${name}=${value}; Path=/; Max-Age=${age}; SameSite=Lax${secure}`;
}
